"""The local page: drop a photograph, type labels, see baseline and refined side by side.

`cli` reads the words, `server` serves, `page` lays out, `handlers` answers what people do there;
`uploads`, `session`, `work`, `choices`, `views` and `guard` know nothing of gradio.
"""
