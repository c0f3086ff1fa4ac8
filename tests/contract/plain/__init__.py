"""Methods and a trainer written from the papers and torch alone: what the package's loop is compared with.

Nothing here is the package's. Its modules only bear the same names, so that initial weights can be loaded and the
weights after a run compared one by one.
"""
