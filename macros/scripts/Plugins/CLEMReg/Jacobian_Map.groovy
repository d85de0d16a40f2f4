// Local volume change of a transform as an image: 1 is none, 0 or less is a fold.

#@ File (label="Transform (clemreg, elastix, ITK, BigWarp)") transform
#@ File (label="Light image that gives the grid (zarr: a file inside it)") lm
#@ File (label="Map (.tif)", style="save") out
#@ Boolean (label="Replace a map that is there", value=false, persist=false) replace
#@ Boolean (label="Open the map", value=true) open
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output File map
#@output String report

import ij.IJ

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

clemreg.attempt {
    clemreg.output(out, replace)
    report = clemreg.run("Jacobian determinant", ["evaluate", "jacobian", "--transform", transform, "--grid-of", clemreg.volume(lm), "--map", out] +
        (replace ? ["--overwrite"] : [])).join("\n")
    map = out
    if (open && !clemreg.headless && out.name =~ /(?i)\.tiff?$/) {
        def image = IJ.openImage(out.path)
        image.setDisplayRange(0.5, 1.5)
        image.show()
    }
}
