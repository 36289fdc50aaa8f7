"""The papers, as pure functions of tensors."""
