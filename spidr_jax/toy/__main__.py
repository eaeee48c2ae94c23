"""Command line of the embedded corpus: `python -m spidr_jax.toy OUT`."""

import argparse
import sys

from spidr_jax.toy.corpus import make_corpus


def main() -> None:
    """Make the corpus in the folder named on the command line; one line on stderr if it fails."""
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.toy", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--train-utterances-per-speaker", type=int, default=60, metavar="N")
    parser.add_argument("--dev-sentences", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = vars(parser.parse_args())
    try:
        make_corpus(args.pop("out"), **args)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is made")


if __name__ == "__main__":
    main()
