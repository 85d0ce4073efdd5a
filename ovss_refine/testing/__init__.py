"""Conformance suites that any source or upsampler can run in its own tests, ours or another's.

```python
def test_my_source():
    check_attention_source(lambda: MySource(tiny_model()))
```
"""

from ovss_refine.testing.attention import check_attention_source as check_attention_source
from ovss_refine.testing.logits import check_logits_source as check_logits_source
from ovss_refine.testing.upsampler import check_upsampler as check_upsampler
