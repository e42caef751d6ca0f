"""The figures of the lessons, a module for each; what an engineer draws as well is in `trtkit.plot`."""
