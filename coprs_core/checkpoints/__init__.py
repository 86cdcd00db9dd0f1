"""Models on disk: found by name, downloaded, loaded strictly, written, converted, examined."""
