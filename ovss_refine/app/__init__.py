"""The local page: drop an image, type labels, compare the baseline with the refined result.

`request` has the flags, `server` serves, `page` lays out, `events` connects, `handlers` responds;
`viewer.js` compares two results in the browser. Only `page`, `events` and `server` know gradio.
"""
