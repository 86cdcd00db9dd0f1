"""Run a batch on several processes or machines, with Ray Data."""
