"""What is chosen on held-out cases: calibration, sampler, weights, decision, edges of the stages."""
