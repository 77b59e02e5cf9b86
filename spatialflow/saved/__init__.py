"""The evaluation on disk: predictions, raw outputs and what describes them."""
