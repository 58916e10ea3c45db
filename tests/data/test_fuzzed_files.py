from fuzz_documents import MOST_MEMORY, MOST_SECONDS, fuzz


def test_two_hundred_broken_files_never_crash_hang_or_grow_the_program():
    found = fuzz(200, seed=1)
    assert found.n_files == 200
    assert found.slowest_seconds < MOST_SECONDS + 5
    assert found.peak_bytes < MOST_MEMORY
    # Broken as they are, many are still read, and no process had to be given up.
    reasons = {outcome.split(": ")[1] for outcome in found.outcomes}
    assert "read" in reasons
    assert not reasons & {"crashed", "timed_out", "out_of_memory"}
