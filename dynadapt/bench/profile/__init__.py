"""``dynadapt profile``: one op or one step, warm and checked, a fixed number of times, for profilers and by itself."""
