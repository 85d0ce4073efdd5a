"""The local page: drop an image, type labels, compare the baseline with the refined result.

`request` has the flags, `server` serves, `page` lays out, `handlers` responds to events;
`uploads`, `session`, `work`, `choices`, `views` and `guard` do not depend on gradio.
"""
