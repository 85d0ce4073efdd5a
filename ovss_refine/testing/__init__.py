"""Conformance suites that any source can run in its own tests, ours or a third party's.

```python
def test_my_source():
    check_attention_source(lambda: MySource(tiny_model()))
```
"""

from ovss_refine.testing.attention import check_attention_source as check_attention_source
from ovss_refine.testing.logits import check_logits_source as check_logits_source
