import time


def test_a(play):
    for i in range(3):
        t = time.time()
        f = play(name=f"r{i}")
        print(time.time() - t, f.losses, f.summary)
        print(f.pool.columns.tolist())
