"""Print MODEL_ZOO.md."""

from .markdown import render

if __name__ == "__main__":
    print(render(), end="")
