"""What a step will cost before it is run: FLOPs, memory traffic, memory, and the time that a machine's ceilings leave.

``step_work`` runs the step's own code with ops that do nothing on tensors that hold nothing (work.py), ``predict`` holds each
op against the ceilings of a machine (ceilings.py), and measured.py says how far measured steps were from that.
"""
