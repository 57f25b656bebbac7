"""Reading weights of other projects: one key table per source format, on plain state dicts."""
