// Writes a finished run as a BigDataViewer dataset or as a MoBIE collection.

#@ File (label="Folder of a run, or of Register EM to LM", style="directory") run
#@ String (label="For", choices={"BigDataViewer", "MoBIE"}, value="BigDataViewer") target
#@ File (label="BigDataViewer: .xml, MoBIE: folder", style="save") out
#@ Boolean (label="Replace an export that is there", value=false, persist=false) replace
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output File exported

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

clemreg.attempt {
    clemreg.output(out, replace)
    // Register EM to LM writes the run into a folder of that name.
    def inside = new File(run, "run")
    def folder = new File(inside, "run.json").isFile() && !new File(run, "run.json").isFile() ? inside : run
    clemreg.run("Exporting for " + target, ["export", target == "MoBIE" ? "mobie" : "bdv", folder, "--out", out] +
        (replace ? ["--overwrite"] : []))
    exported = out
    clemreg.tell("Written: " + out)
}
