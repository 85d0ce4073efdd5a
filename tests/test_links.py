"""Links lead somewhere: those inside to files and headings, those outside to hosts that are meant.

Nothing is requested. A link to another host must be whole, and its host be listed here.
"""

import re
import tomllib
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from doc_pages import PAGES, ROOT, read
from test_docs import anchors

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOSTS = {
    "arxiv.org": "papers",
    "openaccess.thecvf.com": "papers",
    "openreview.net": "papers",
    "pypi.org": "packages",
    "www.jmlr.org": "papers",
    "github.com": "code: other authors', and this project's",
    "huggingface.co": "weights, and the site that shows Spaces",
    "www.contributor-covenant.org": "the code of conduct",
    "www.public-domain-image.com": "where an example comes from",
    "colab.research.google.com": "opens the notebooks",
}
# In texts about addresses, not for a click.
MADE_UP = re.compile(
    r"https?://(127\.0\.0\.1|localhost|lab\.example\.org|USER-SPACE\.hf\.space|[^/]*\{)"
)
URL = re.compile(r"https?://[^\s\[\]<>\"'`]+")
OTHERS = [
    *("CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CITATION.cff", "pyproject.toml"),
    *("docs/space/README.md", "docs/gallery/GALLERY_HEADER.rst", "ovss_refine/examples/README.md"),
]
CODE = [
    str(path.relative_to(ROOT))
    for folder, kind in product(
        ("ovss_refine", "adapters", "docs/gallery", "benchmarks"), ("py", "js", "toml")
    )
    for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
]
EVERYTHING = [*PAGES, *OTHERS, *CODE]


def urls(page):
    """Return the addresses in a file, without what follows them in a sentence."""
    for url in URL.findall(read(page)):
        if not MADE_UP.match(url):
            unopened = url.count(")") > url.count("(")
            yield (url[: url.index(")")] if unopened else url).rstrip(".,;:*")


def test_addresses_elsewhere_are_whole_and_of_known_hosts():
    found = {url: page for page in EVERYTHING for url in urls(page)}
    for url, page in found.items():
        parts = urlsplit(url)
        assert parts.hostname in HOSTS, f"{page}: {url}"
        secure = parts.scheme == "https" or parts.hostname == "www.public-domain-image.com"
        assert secure, f"{page}: {url}"
        assert re.fullmatch(r"[\w/.=~%+:@-]*", parts.path), f"{page}: {url}"
    used = {urlsplit(url).hostname for url in found}
    assert used | {"colab.research.google.com"} == {*HOSTS}


def test_papers_are_named_in_full():
    for page in EVERYTHING:
        for url in urls(page):
            if "arxiv.org" in url:
                assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", url), f"{page}: {url}"
        for number in re.findall(r"arXiv[: ]\s*(\d[\d.]*\d)", read(page)):
            assert re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{5}", number), f"{page}: {number}"
        for doi in re.findall(r"doi(?:\.org/|: ?)(\S+)", read(page), re.IGNORECASE):
            assert re.match(r"10\.\d{4,9}/\S+", doi), f"{page}: {doi}"


@pytest.mark.parametrize("page", [page for page in OTHERS if page.endswith(".md")])
def test_links_of_the_other_pages(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert URL.match(target) or file.exists(), target
        if anchor and not URL.match(target):
            assert anchor in anchors(file.read_text()), target


def test_links_to_the_gallery_lead_to_its_scripts():
    found = {
        name for page in PAGES for name in re.findall(r"\]\(auto_gallery/(\w+)\.rst\)", read(page))
    }
    assert found
    assert [name for name in found if not (ROOT / f"docs/gallery/{name}.py").exists()] == []


@pytest.mark.parametrize("script", sorted((ROOT / "docs/gallery").glob("*.py")))
def test_the_gallery_names_pages_that_exist(script):
    for name in re.findall(r":doc:`([^`]+)`", script.read_text()):
        place = f"docs{name}.md" if name.startswith("/") else f"docs/gallery/{name}.py"
        assert (ROOT / place).exists(), name


@pytest.mark.parametrize("page", [*CODE, *PAGES])
def test_files_that_are_named_exist(page):
    """In code and comments, a path from the root of the repository; results are made by scripts."""
    for path in re.findall(r"\b((?:docs|tests|benchmarks)/[\w/]+\.(?:py|md))\b", read(page)):
        assert (ROOT / path).exists() or (ROOT / page).parent.joinpath(path).exists(), path


def test_the_badges_of_readme_are_true():
    """They are files of this repository: no service is asked."""
    top = read("README.md").partition("![Four")[0]
    shown = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", top)
    assert [Path(place).name for _, place in shown] == [
        "badge.svg",
        "badge_python.svg",
        "badge_licence.svg",
    ]
    versions = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    texts = {
        "python": f"Python: {versions[0]} to {versions[-1]}",
        "licence": f"licence: {PROJECT['license']}",
    }
    for name, text in texts.items():
        assert f"<title>{text}</title>" in read(f"docs/images/badge_{name}.svg")
        assert f"![{text}]" in top
    # GitHub's own, by a relative address: the repository's stands in pyproject.toml alone.
    workflow = re.search(r"\.\./\.\./actions/workflows/(\w+\.yml)/badge\.svg", top)[1]
    assert (ROOT / ".github/workflows" / workflow).exists()
