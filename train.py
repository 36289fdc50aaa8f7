"""python train.py selector=certainty"""

from choosy.main import main

main()
