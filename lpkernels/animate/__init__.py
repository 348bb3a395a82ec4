"""Animation: pictures and clips in, motion, frames out.

``image`` and ``video`` read and write files; ``motion``, ``retarget``, ``template`` and ``smoothing`` are the motion
maths; ``source`` and ``extract`` run the networks that read a picture; ``animator`` is the frame engine, ``pipeline``
animates whole files with it, and ``portrait`` draws the sample that the demo and the tests use.
"""
