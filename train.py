"""python train.py selector=certainty"""

try:
    from choosy.main import main
except ModuleNotFoundError as missing:
    if missing.name != "choosy":
        raise
    raise SystemExit("This Python has no Choosy: type make setup, then source .venv/bin/activate") from None

main()
