"""The stages of ``benchmarks/gpu_campaign.py``: a stage is a module with ``run(campaign, record)``."""
