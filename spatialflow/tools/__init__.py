"""What a person starts: a module, or a package with a module ``command``, for each command.

:data:`spatialflow.cli.COMMANDS` names them. Such a module has

    parser() -> CommandParser                  with examples, and the name "spatialflow NAME"
    run(args: argparse.Namespace) -> int | None    does the work; what it returns is the exit code

and neither reads ``sys.argv`` nor catches errors in order to end the program: a mistake of the user
is raised (:mod:`spatialflow.errors`), a ``UsageError`` where arguments do not fit together. What
needs torch for some arguments only is imported in functions.
"""
