"""The Vagrantfile: its Ruby is sound, and what it sets up is what the guest of `make test-vm` gets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Vagrant itself is not in Debian: this stands in for it and prints what the file asks of it.
STUB = """
class Recorder
  def initialize(path) = @path = path
  def method_missing(name, *args, **options)
    puts "#{@path}.#{name} #{args} #{options}" unless args.empty?
    found = Recorder.new("#{@path}.#{name.to_s.delete_suffix('=')}")
    yield found if block_given?
    found
  end
  def respond_to_missing?(*) = true
end
module Vagrant
  def self.configure(version)
    yield Recorder.new("config#{version}")
  end
end
"""


def test_ruby_syntax() -> None:
    assert shutil.which("ruby"), "ruby is not installed; run: tests/vm/provision.sh packages test"
    done = subprocess.run(
        ["ruby", "-wc", ROOT / "Vagrantfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "Syntax OK", "")


def test_it_runs_the_provisioning_script_of_the_repository() -> None:
    done = subprocess.run(
        ["ruby", "-e", STUB + (ROOT / "Vagrantfile").read_text()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'config2.vm.box= ["debian/bookworm64"]' in done.stdout
    found = re.search(r'provision \["shell"\] \{:path=>"([^"]+)", :args=>\["(\w+)"', done.stdout)
    assert found, done.stdout
    script = ROOT / found[1]
    assert script.stat().st_mode & 0o111
    assert re.search(rf"^    {found[2]}\)", script.read_text(), re.MULTILINE)
    assert found[1] in (ROOT / "tests/vm/image.py").read_text()
