"""What is asked of a model: prompt, counterfactual, metric."""
