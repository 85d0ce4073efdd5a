"""The command line, `ovss-refine`: one module per command."""

from ovss_refine.cli.main import main as main
from ovss_refine.cli.main import parser as parser
