"""Language models: the policy, its reference, embedders."""
