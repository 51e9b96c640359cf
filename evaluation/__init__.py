"""Comparative studies: data with exact truth, baselines, faithfulness and localisation metrics, statistics.

Installed as `captum_attnkd.evaluation`.
"""
