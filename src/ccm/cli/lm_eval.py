"""``ccm lm-eval``: the command of lm-eval, which then knows the model ``ccm``."""

from __future__ import annotations

import sys

import typer

PASSED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}  # all of it is lm-eval's


def lm_eval(context: typer.Context) -> None:
    """Tasks of lm-eval with their context in memory: lm-eval's own options, with --model ccm."""
    from ccm.core.extras import needs

    needs("lm_eval", what="ccm lm-eval", extra="lm-eval")
    import lm_eval.__main__

    import ccm.evaluation.harness  # noqa: F401  it registers the model

    sys.argv = ["lm-eval", *context.args]
    lm_eval.__main__.cli_evaluate()
