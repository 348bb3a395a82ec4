"""Benchmarks: every kernel, network and frame against PyTorch's own, with the error beside each time.

Reads top down: ``session`` runs the ``levels``; each level makes ``work.Subject`` objects; ``harness`` warms their
providers up, checks them against FP32, and times them interleaved; ``records`` keeps what came out, and ``compare``,
``plots``, ``report`` and ``readme`` show it.
"""
