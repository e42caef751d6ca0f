"""How the networks of `trtkit.course.trained` were trained: one module each, run with `python -m`, seeded."""
