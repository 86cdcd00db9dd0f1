"""More than one process or machine: the same job on Ray Data."""
