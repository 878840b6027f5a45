"""Measuring a model: questions -> likelihoods of their answers -> figures by method and depth -> tables and plots."""
