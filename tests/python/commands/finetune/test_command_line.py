"""The command line: verbs, options, and that asking for help is quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zeromuon.commands import cli


def test_an_unknown_verb_is_answered_with_the_nearest(capsys):
    assert cli.main(["finetun"]) == 2
    assert 'did you mean "finetune"?' in capsys.readouterr().err


def test_a_word_that_is_like_no_verb_gets_no_guess(capsys):
    assert cli.main(["xyzzy"]) == 2
    err = capsys.readouterr().err
    assert 'expected a verb (finetune, ckpt, compare, bench), found "xyzzy"' in err and "did you mean" not in err


def test_a_demo_without_its_package_says_what_installs_it(capsys, monkeypatch):
    monkeypatch.delenv("ZEROMUON_DEMO_MODEL", raising=False)
    monkeypatch.setattr("zeromuon.commands.finetune.model_folder.DEMO_PACKAGE", "no_such_package_of_zeromuon")
    assert cli.main(["finetune", "--demo"]) == 2
    err = capsys.readouterr().err
    assert "run ./run demo, which installs it, or set ZEROMUON_DEMO_MODEL" in err


def test_an_unknown_option_is_answered_with_the_nearest(capsys):
    assert cli.main(["finetune", "--modle", "x"]) == 2
    assert 'unknown argument "--modle"; did you mean "--model"?' in capsys.readouterr().err


def test_a_value_of_the_wrong_type_is_refused(capsys):
    assert cli.main(["finetune", "--steps", "many"]) == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"]])
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['zeromuon', *{arguments!r}]\n"
        "try: runpy.run_module('zeromuon', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: zeromuon" in done.stdout


def test_no_verb_prints_the_usage(capsys):
    assert cli.main([]) == 2
    assert "finetune" in capsys.readouterr().out


def test_the_learning_rate_option_is_an_override_of_the_configuration():
    options = vars(cli.finetune_parser().parse(["--lr", "0.5", "--set", "optimizer.params.momentum=0.9"]))
    options.pop("out"), options.pop("resume")
    assert cli.settings_given(options) == {"overrides": ("optimizer.params.momentum=0.9", "optimizer.params.lr=0.5")}


def test_the_demo_uses_another_model_when_told(monkeypatch, masked_model):
    monkeypatch.setenv("ZEROMUON_DEMO_MODEL", str(masked_model))
    settings = cli.new_settings({"demo": True})
    assert settings.model == str(masked_model)
    assert settings.steps == 40 and settings.seq_len == 64 and settings.batch * settings.ranks == 16
