"""``platform completion``."""

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """For bash, `eval "$(platform completion bash)"` in ~/.bashrc; for zsh the same in ~/.zshrc, behind compinit; for
    fish, `platform completion fish > ~/.config/fish/completions/platform.fish`.
    """
    from flowplat.cli.completions import script

    click.echo(script(shell))
