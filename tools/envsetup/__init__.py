"""Making the virtual environment: the work behind tools/setup_env.py.

Only the standard library is imported, since this runs before anything is installed. What was
installed is recorded in the environment, with a hash of everything it depends on; as long as both
hold, a run costs a second.
"""
