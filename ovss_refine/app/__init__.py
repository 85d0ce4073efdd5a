"""The local page: drop a photograph, type labels, see baseline and refined side by side.

`request` has the flags, `server` serves, `page` lays out, `handlers` answers what people do there;
`uploads`, `session`, `work`, `choices`, `views` and `guard` know nothing of gradio.
"""
