"""Whether a circuit is what it claims to be: faithfulness, completeness, minimality, curves, and what to set them against."""
