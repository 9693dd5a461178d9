from dynadapt.cli import main

main()
