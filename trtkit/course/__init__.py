"""What the lessons need and an experiment does not: photographs, networks, notebook helpers, exercise checks."""
