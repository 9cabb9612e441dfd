"""The root command line: tables of flags, and one file per group of verbs."""
