"""The levels, from one kernel to a whole job; each has ``measure(context)``, yielding measurements per subject."""
