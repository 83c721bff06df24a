"""The report of motifs: what recurs in trajectories, as one page that plays it."""
