"""Pages of a run, as Markdown: the report, which HTML is rendered from, and the model card."""
