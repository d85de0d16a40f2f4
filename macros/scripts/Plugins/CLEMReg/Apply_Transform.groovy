// Brings an image or a table of points through a transform; opens a result that is a TIFF.

#@ File (label="Transform (clemreg, elastix, ITK, BigWarp)") transform
#@ File (label="Image or table of points (.csv)") subject
#@ File (label="Image that gives the grid (not for points)", required=false) onto
#@ String (label="Direction", choices={"EM image onto the light grid, or light points to EM", "light image onto the EM grid, or EM points to light"}, value="EM image onto the light grid, or light points to EM") direction
#@ Boolean (label="The image holds ids (labels)", value=false) labels
#@ File (label="Result (.tif, .zarr, .csv)", style="save") out
#@ Boolean (label="Replace a result that is there", value=false, persist=false) replace
#@ Boolean (label="Open the result", value=true) open
#@ String (label="Python with clemreg (empty: as set up)", visibility="INVISIBLE", required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output File result

import ij.IJ

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

clemreg.attempt {
    clemreg.output(out, replace)
    def words = ["apply", transform, clemreg.volume(subject), "--out", out]
    if (onto != null) words += ["--onto", clemreg.volume(onto)]
    if (direction.startsWith("light image")) words += "--inverse"
    if (labels) words += "--labels"
    if (replace) words += "--overwrite"
    clemreg.run("Applying the transform", words)
    result = out
    if (open && !clemreg.headless && out.name =~ /(?i)\.tiff?$/) IJ.openImage(out.path).show()
}
