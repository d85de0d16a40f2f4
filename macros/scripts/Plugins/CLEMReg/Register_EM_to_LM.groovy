// Registers an electron microscopy volume to a light microscopy volume of the same cell.

#@ File (label="EM volume (zarr: a file inside it)") em
#@ String (label="The EM volume is", choices={"raw EM, to be segmented", "a mitochondria mask or prediction"}, value="raw EM, to be segmented") kind
#@ File (label="Light volume (zarr: a file inside it)") lm
#@ String (label="Its mitochondria channel (empty: by name)", required=false, value="") channel
#@ String (label="Point spread", choices={"palm", "sim", "confocal"}, value="palm") psf
#@ String (label="EM voxel size: x, y, z nm (empty: as in the file)", required=false, value="") emSpacing
#@ String (label="Light voxel size: x, y, z nm (empty: as in the file)", required=false, value="") lmSpacing
#@ File (label="Landmarks to check with (may be empty)", required=false) landmarks
#@ File (label="Folder for the result", style="directory") out
#@ Boolean (label="Go on with, or replace, what is in that folder", value=false, persist=false) replace
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output File transform
#@output String verdict

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

/** What a person reads at the end: the verdict, why, and where things are. */
def summary(List<String> said, String place) {
    verdict = clemreg.answer(said, "verdict")
    // The landmarks given here are measured right after.
    def reasons = clemreg.under(said, "verdict").findAll { landmarks == null || !it.contains("Accuracy was not measured") }
    (["Verdict: " + verdict] + reasons + place).join("\n")
}

/** A volume as a configuration names it: quoted, relative to it; null if it says it in another way. */
def volumeIn(File config, String section) {
    def line = config.getText("UTF-8") =~ '(?ms)^\\[' + section + '\\]\\s*$(?:(?!^\\[).)*?^path *= *"((?:[^"\\\\]|\\\\.)*)"'
    if (!line.find()) return null
    def path = line.group(1).replaceAll(/\\(["\\])/, '$1').split("::")[0]
    def file = new File(path)
    file.absolute ? file : new File(config.parentFile, path)
}

/** Refuse to go on with a configuration that is for other volumes than those chosen now. */
def checkVolumes(File config) {
    [em: em, lm: lm].each { section, chosen ->
        def there = volumeIn(config, section)
        if (there != null && there.exists() && there.canonicalPath != new File(clemreg.volume(chosen)).canonicalPath) {
            clemreg.fail(config.path + " is for another volume: " + there.canonicalPath + "\nChoose another folder, or that volume.")
        }
    }
}

/** A key of the configuration, for this time: what is filled in counts more than the file. */
def setting(String key, value) {
    clemreg.option("--set", value == null || !value.toString().trim() ? "" : key + "=" + value)
}

def registerRaw = {
    def config = new File(out, "clemreg.toml")
    if (config.exists()) {
        checkVolumes(config)
    } else {
        clemreg.run("clemreg init", ["init", out, "--em", clemreg.volume(em), "--lm", clemreg.volume(lm)] +
            clemreg.option("--channel", channel) + clemreg.option("--em-spacing", emSpacing) +
            clemreg.option("--lm-spacing", lmSpacing) + clemreg.option("--landmarks", landmarks))
    }
    def said = clemreg.run("Registering EM to LM", ["run", config] + setting("register.psf", psf) +
        setting("lm.channel", channel) + setting("em.voxel_size", emSpacing) + setting("lm.voxel_size", lmSpacing) +
        setting("proof.landmarks", landmarks?.absolutePath))
    transform = new File(out, "run/registration/transform.json")
    clemreg.tell(summary(said, "Report: " + clemreg.answer(said, "report")))
}

def registerMask = {
    if (emSpacing.trim() || lmSpacing.trim()) {
        clemreg.fail("A mask is taken with the voxel size in its file, and so is its light volume: leave both sizes empty.")
    }
    def said = clemreg.run("Registering EM to LM", ["register", "--fixed", clemreg.volume(lm), "--moving", clemreg.volume(em),
        "--out", out, "--psf", psf] + clemreg.option("--channel", channel) + (replace ? ["--overwrite"] : []))
    transform = new File(out, "transform.json")
    def text = summary(said, "Transform: " + transform)
    if (landmarks != null) {
        def measured = clemreg.run("Landmark accuracy", ["evaluate", "landmarks", "--transform", transform, "--landmarks", landmarks])
        text += "\n" + measured.takeWhile { !it.startsWith("  by_rater") }.join("\n")
    }
    clemreg.tell(text)
}

clemreg.attempt {
    clemreg.output(out, replace)
    if (kind.startsWith("raw")) registerRaw() else registerMask()
}
