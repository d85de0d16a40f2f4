// Predicts mitochondria and their membrane in an EM volume; a stopped run goes on where it stopped.

#@ File (label="EM volume (zarr: a file inside it)") em
#@ String (label="Network (auto: the one nearest in voxel size)", value="auto") model
#@ String (label="EM voxel size: x, y, z nm (empty: as in the file)", required=false, value="") spacing
#@ File (label="Prediction (.zarr)", style="save") out
#@ Boolean (label="Replace a prediction that is there", value=false, persist=false) replace
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output File prediction

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

clemreg.attempt {
    clemreg.output(out, replace)
    clemreg.run("Segmenting mitochondria", ["segment", clemreg.volume(em), "--out", out, "--model", model] + clemreg.option("--spacing", spacing) +
        (replace ? ["--overwrite"] : []))
    prediction = out
    clemreg.tell("Prediction: " + out)
}
