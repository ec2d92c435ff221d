"""Registration by processes that are killed or run at the same time."""

import signal
import subprocess
import sys

from uveitis_assets.landing.ledger import read_ledger
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane


def test_a_killed_registration_leaves_the_old_ledger_and_the_next_one_finishes(store):
    for number in range(30):
        land(store, f"{number:03d}.jpg", jpeg(number))
    register(store, lane())
    for number in range(30, 90):
        land(store, f"{number:03d}.jpg", jpeg(number))
    before = store.ledger_file("lane").read_bytes()
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration\n"
        "from uveitis_assets.landing.registration import register\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "real, opened = os.open, []\n"
        "def stop_in_the_middle(path, *rest):\n"
        "    if str(path).endswith('.jpg'):\n"
        "        opened.append(path)\n"
        "        if len(opened) > 40:\n"
        "            os.write(1, b'reading\\n')\n"
        "            time.sleep(3600)\n"
        "    return real(path, *rest)\n"
        "os.open = stop_in_the_middle\n"
        "register(store, DatasetConfiguration(name='lane', layout='image_folder', folder='ds', batch_size=4))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        first_line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert first_line == "reading\n"
    assert store.ledger_file("lane").read_bytes() == before
    report = register(store, lane())  # the dead process's lock does not hold
    assert (report.n_images, len(report.new)) == (90, 60)


def test_two_processes_registering_at_once_agree(store):
    for number in range(60):
        land(store, f"{number:03d}.jpg", jpeg(number))
    code = (
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration\n"
        "from uveitis_assets.landing.registration import register\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "dataset = DatasetConfiguration(name='lane', layout='image_folder', folder='ds', batch_size=7)\n"
        "print(len(register(store, dataset).new))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = sorted(int(process.communicate()[0]) for process in processes)
    assert counts == [0, 60]
    assert len(read_ledger(store, "lane")) == 60
