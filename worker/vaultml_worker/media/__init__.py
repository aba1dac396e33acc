"""Reading recordings as cameras write them: containers, times, keyframes, colours, and what is left of a cut file."""
