"""The embedded data set: AFLOW's crystal prototypes, grown by chemically sensible substitution."""
